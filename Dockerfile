# Serves the shipped model on port 8000.
#
#   docker build -t rbm-dream .
#   docker run --rm -p 8000:8000 -e RBM_API_KEYS=choose-a-long-secret rbm-dream
#   docker run --rm -p 127.0.0.1:8000:8000 -e RBM_INSECURE=true rbm-dream     # no key: only for your own computer
#
# The root file system may be read-only: add `--read-only --tmpfs /tmp`. Models of your own: mount a store of
# checkpoints and name it, `-v ./checkpoints:/models:ro -e RBM_CHECKPOINTS=/models`.

FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /app
COPY requirements.lock /src/requirements.lock
RUN /app/bin/pip install --require-hashes -r /src/requirements.lock
COPY pyproject.toml README.md LICENSE /src/
COPY model_core /src/model_core
COPY service /src/service
COPY checkpoints /src/checkpoints
RUN /app/bin/pip install --no-deps /src

FROM python:3.11-slim
LABEL org.opencontainers.image.title="rbm-dream" \
      org.opencontainers.image.description="Dreams, samples and features of a Restricted Boltzmann Machine" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /app /app
# Numba and Matplotlib keep compiled code and fonts under HOME and NUMBA_CACHE_DIR: /tmp is what this user may write.
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp NUMBA_CACHE_DIR=/tmp/numba \
    RBM_HOST=0.0.0.0 RBM_PORT=8000
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['RBM_PORT'] + '/healthz', timeout=2)"]
CMD ["rbm", "serve"]
