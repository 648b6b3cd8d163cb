# This Python is built with profile-guided and link-time optimisation: see docs/performance.md for what that saves.
FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cart_grpc ./cart_grpc
COPY generated ./generated
# The second stage copies this environment to the same path, because a virtual environment cannot move.
RUN python -m venv --without-pip /opt/cart-grpc
RUN python -m pip wheel --no-deps --wheel-dir /wheels . \
 && python -m pip --python /opt/cart-grpc install --constraint constraints.txt "$(ls /wheels/*.whl)[cli,server,otel]"
# The list of all packages in the environment (SBOM), by a tool in an environment of its own.
RUN python -m venv --without-pip /opt/sbom \
 && python -m pip --python /opt/sbom install --no-compile --constraint constraints.txt cyclonedx-bom \
 && mkdir /opt/cart-grpc/share \
 && /opt/sbom/bin/cyclonedx-py environment --no-validate --output-reproducible --pyproject pyproject.toml \
    --output-file /opt/cart-grpc/share/sbom.cdx.json /opt/cart-grpc

FROM python:3.13-slim
# A test compares them with pyproject.toml.
LABEL org.opencontainers.image.title="cart-grpc" \
      org.opencontainers.image.description="A shopping cart over gRPC that reserves what is put in it" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# Nothing can be installed in a running container.
RUN python -m pip uninstall --yes pip \
 && rm -rf /usr/local/lib/python3.13/ensurepip
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /var/lib/cart-grpc cart-grpc \
 && install --directory --owner=cart-grpc --group=cart-grpc --mode=0750 /var/lib/cart-grpc
COPY --from=build /opt/cart-grpc /opt/cart-grpc
# 0.0.0.0 is beyond loopback. So `serve` starts only with identities (CART_TOKEN_KEYS), or with
# CART_ALLOW_ANYONE_TO_BE_ANY_USER=true.
ENV PATH=/opt/cart-grpc/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CART_LISTEN=0.0.0.0:50051 \
    CART_DATABASE_URL=sqlite:////var/lib/cart-grpc/cart.db
WORKDIR /var/lib/cart-grpc
VOLUME /var/lib/cart-grpc
# By number: a cluster that forbids root cannot check a name.
USER 10001:10001
EXPOSE 50051
# The server then stops in CART_LAME_DUCK + CART_SHUTDOWN_GRACE: `docker stop --time 20`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["cart-grpc", "health"]
CMD ["cart-grpc", "serve"]
