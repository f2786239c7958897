"""The project's own template, `template.yaml`, deployed to the endpoint.

Reserved for it: `Stacks` deploys and removes, the fixtures `http_api` and `kafka_mapping` tell which of its
conditions an endpoint can take, and `SchedulePump` fires what the endpoint only stores.
"""
