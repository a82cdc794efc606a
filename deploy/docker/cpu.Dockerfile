# Workers, dashboard and tools, without torch. Built from the project's root:
#   docker build -f deploy/docker/cpu.Dockerfile -t narrows:cpu .
FROM python:3.12-slim-bookworm AS build
RUN pip install --no-cache-dir uv==0.13.9 && python -m venv /opt/narrows
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The dependencies alone: this layer stays while only our own code changes.
RUN uv pip install --no-cache --python /opt/narrows/bin/python -c constraints.txt -r pyproject.toml --extra cpu
COPY README.md LICENSE ./
COPY pipeline pipeline
COPY training training
RUN uv pip install --no-cache --python /opt/narrows/bin/python --no-deps .

FROM python:3.12-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp narrows \
    && install -d -o narrows -g narrows /registry /etc/narrows
COPY --from=build /opt/narrows /opt/narrows
# numba keeps compiled kernels beside its sources, which are read-only here.
ENV PATH=/opt/narrows/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/tmp/numba \
    NARROWS_CONFIG=/etc/narrows/narrows.yaml NARROWS_REGISTRY__PATH=/registry NARROWS_WORKER__METRICS_HOST=0.0.0.0
USER 10001:10001
VOLUME /registry
EXPOSE 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["narrows"]
CMD ["worker"]
