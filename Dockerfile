# The daemon and the command line in one image, without build tools, running as nobody in particular.
# Build: docker build -t outbox .      Use: docker run --env-file outbox.env outbox status
# With the extras for spans and `outbox top`: docker build --build-arg EXTRAS='[otel,top]' -t outbox .

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY outbox outbox
COPY sql sql
# In brackets, with commas between them; empty for none.
ARG EXTRAS=""
# The virtual environment gets no pip of its own: what runs in production installs nothing. The wheel's name is found
# first, because with the brackets behind it the shell would look for other files.
RUN python -m pip wheel --no-cache-dir --disable-pip-version-check --no-deps --wheel-dir /dist . \
    && python -m venv --without-pip /opt/outbox \
    && set -- /dist/*.whl \
    && python -m pip --python /opt/outbox/bin/python install \
        --no-cache-dir --disable-pip-version-check --constraint constraints.txt "$1$EXTRAS" \
    && /opt/outbox/bin/outbox --version

FROM python:3.13-slim
LABEL org.opencontainers.image.title="outbox" \
      org.opencontainers.image.description="Every committed row change reaches its subscribers" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/outbox /opt/outbox
# Nothing is written at run time, so that the root file system may be read-only.
ENV PATH=/opt/outbox/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A number, because Kubernetes' runAsNonRoot cannot look into a name.
USER 10001:10001
# Alive is what OUTBOX_LISTEN's /livez says; who does not listen is alive while the process is. http.client, because
# urllib would ask a proxy from the environment.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s CMD ["python", "-c", "import http.client, os, sys\nlisten = os.environ.get('OUTBOX_LISTEN')\nif listen:\n    asked = http.client.HTTPConnection('127.0.0.1', int(listen.rpartition(':')[2]), timeout=4)\n    asked.request('GET', '/livez')\n    sys.exit(asked.getresponse().status != 200)\n"]
ENTRYPOINT ["outbox"]
CMD ["run"]
