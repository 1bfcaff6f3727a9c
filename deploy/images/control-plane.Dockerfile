ARG PYTHON=python:3.12-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mesh_api mesh_api
COPY sidecar sidecar
COPY control_plane control_plane
COPY pilotfish pilotfish
RUN python -m venv --without-pip /opt/pilotfish \
 && pip --python /opt/pilotfish/bin/python install --no-cache-dir --disable-pip-version-check '.[control-plane]'

FROM ${PYTHON}
COPY --from=build /opt/pilotfish /opt/pilotfish
ENV PATH=/opt/pilotfish/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# No account of that number exists in the image, and none is needed.
USER 15098:15098
ENTRYPOINT ["/opt/pilotfish/bin/python", "-P", "-m", "pilotfish"]
CMD ["control-plane", "--help"]
