"""The AWS-facing suite: what of AWS is used, against whatever endpoint is given. Run by `make test-localstack`."""
