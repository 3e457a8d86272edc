#!/bin/sh
# The HAProxy that Ray bundles, its statistics and metrics pages on this machine only: Ray's configuration binds them to
# every interface, whatever host the endpoint itself has. Ray starts this through RAY_SERVE_HAPROXY_BINARY_PATH.
previous=
for argument in "$@"; do
    if [ "$previous" = "-f" ]; then
        sed -i \
            -e "s/bind \*:${RAY_SERVE_HAPROXY_STATS_PORT}\$/bind 127.0.0.1:${RAY_SERVE_HAPROXY_STATS_PORT}/" \
            -e "s/bind :${RAY_SERVE_HAPROXY_METRICS_PORT}\$/bind 127.0.0.1:${RAY_SERVE_HAPROXY_METRICS_PORT}/" \
            "$argument"
    fi
    previous=$argument
done
exec "$CLASSIFIER_HAPROXY" "$@"
