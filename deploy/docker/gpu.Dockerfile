# Workers that score on an NVIDIA GPU (CUDA 13, driver 580 or newer). Built from the project's root:
#   docker build -f deploy/docker/gpu.Dockerfile -t narrows:gpu .
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS base
RUN apt-get update && apt-get install --yes --no-install-recommends python3.12 python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
RUN python3.12 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9 && python3.12 -m venv /opt/narrows
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/narrows/bin/python -c constraints.txt -r pyproject.toml \
    --extra gpu
COPY README.md LICENSE ./
COPY pipeline pipeline
COPY training training
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/narrows/bin/python --no-deps .

FROM base
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp narrows \
    && install -d -o narrows -g narrows /registry /etc/narrows
COPY --from=build /opt/narrows /opt/narrows
ENV PATH=/opt/narrows/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/tmp/numba \
    NARROWS_CONFIG=/etc/narrows/narrows.yaml NARROWS_REGISTRY__PATH=/registry NARROWS_WORKER__METRICS_HOST=0.0.0.0 \
    NARROWS_WORKER__PROVIDER=cuda
USER 10001:10001
VOLUME /registry
EXPOSE 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["narrows"]
CMD ["worker"]
