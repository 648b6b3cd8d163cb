# This Python is built with profile-guided and link-time optimisation: see docs/performance.md for what that saves.
FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cart_grpc ./cart_grpc
COPY generated ./generated
# The second stage copies this environment to the same path, because a virtual environment cannot move.
RUN python -m venv /opt/cart-grpc
RUN /opt/cart-grpc/bin/python -m pip wheel --no-deps --wheel-dir /wheels . \
 && /opt/cart-grpc/bin/python -m pip install --constraint constraints.txt "$(ls /wheels/*.whl)[server]"

FROM python:3.13-slim
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
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["cart-grpc", "health"]
CMD ["cart-grpc", "serve"]
