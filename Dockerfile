# The control plane of the always-on shape, for ARM as the template runs it:
#
# tenuto sam: this example alone
#     docker build --platform linux/arm64 --build-arg CONFIG=examples/user_updates/tenuto.toml --tag tenuto .
# tenuto sam: end
# tenuto sam: commands
#
# This project's CI has no container engine, so this file is not run there; what it installs and starts is.
#
# The digest is that of the index of all platforms for 3.13.14 on Debian trixie, as Docker's own record of its official
# images (docker-library/repo-info, repos/python/remote/3.13-slim.md) gave it on 2026-08-05. To follow security fixes,
# examine a newer one and pin it, here or for a build:
#
#     docker buildx imagetools inspect python:3.13-slim    # names the digest of the index
#     docker build --build-arg BASE=python:3.13-slim@sha256:... --platform linux/arm64 --tag tenuto .
ARG BASE=python:3.13-slim@sha256:9662417aace5ae7b8e2609cce472b72a8958e134ba372808abe9cc1a0c0125e6
# tenuto sam: this example alone
FROM ${BASE} AS build

COPY requirements/control.txt /tmp/control.txt
# The file is a complete lock, so nothing is resolved, and nothing is built: every pin has a wheel for Linux.
RUN python -m pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: \
        --target /app --requirement /tmp/control.txt
COPY adapters/tenuto /app/tenuto
COPY control_plane/tenuto_control /app/tenuto_control
# Compiled here, since the running container's disk is read only.
RUN python -m compileall -q /app

# tenuto sam: end
FROM ${BASE}

LABEL org.opencontainers.image.title="tenuto" \
      org.opencontainers.image.description="The control plane: consumes, dispatches, sweeps and serves HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      tenuto.tested="not run in this project's CI, which has no container engine"

# tenuto sam: this example alone
COPY --from=build /app /app
ARG CONFIG=examples/user_updates/tenuto.toml
COPY ${CONFIG} /app/tenuto.toml
# tenuto sam: end
# tenuto sam: files

ENV PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TENUTO_LOG_FORMAT=json \
    TENUTO_HTTP_HOST=0.0.0.0 \
    TENUTO_HTTP_PORT=8080 \
    TENUTO_HTTP_HEALTH_PORT=8081
WORKDIR /app
USER 10001:10001
EXPOSE 8080 8081

# SIGTERM drains: give it longer than twice limits.drain_timeout_ms (5 s) before a SIGKILL.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8081/health', timeout=3)"]

ENTRYPOINT ["python", "-m", "tenuto_control"]
CMD ["run", "--config", "/app/tenuto.toml"]
