ARG PYTHON=python:3.12-slim-bookworm

FROM ${PYTHON} AS build
COPY examples/shop/apps/requirements.txt /requirements.txt
COPY deploy/images/pid1.py /opt/shop/pid1.py
COPY examples/shop/apps /app
# The clone's umask may have kept the files from others.
RUN python -m venv --without-pip /opt/shop \
 && pip --python /opt/shop/bin/python install --no-cache-dir --disable-pip-version-check -r /requirements.txt \
 && chmod -R a+rX /app /opt/shop

FROM ${PYTHON}
COPY --from=build /opt/shop /opt/shop
COPY --from=build /app /app
ENV PATH=/opt/shop/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["/opt/shop/bin/python", "/opt/shop/pid1.py"]
CMD ["users.py"]
