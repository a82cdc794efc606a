# Training and retraining, with torch. Built from the project's root; TORCH_BACKEND=cu130 trains on a GPU:
#   docker build -f deploy/docker/trainer.Dockerfile -t narrows:trainer .
FROM python:3.12-slim-bookworm AS build
ARG TORCH_BACKEND=cpu
RUN pip install --no-cache-dir uv==0.13.9 && python -m venv /opt/narrows
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN uv pip install --no-cache --python /opt/narrows/bin/python -c constraints.txt --torch-backend ${TORCH_BACKEND} \
    -r pyproject.toml --extra cpu --extra train
COPY README.md LICENSE ./
COPY pipeline pipeline
COPY training training
RUN uv pip install --no-cache --python /opt/narrows/bin/python --no-deps .

FROM python:3.12-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp narrows \
    && install -d -o narrows -g narrows /registry /etc/narrows
COPY --from=build /opt/narrows /opt/narrows
ENV PATH=/opt/narrows/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib \
    NARROWS_CONFIG=/etc/narrows/narrows.yaml NARROWS_REGISTRY__PATH=/registry
USER 10001:10001
VOLUME /registry
STOPSIGNAL SIGTERM
ENTRYPOINT ["narrows"]
CMD ["trainer"]
