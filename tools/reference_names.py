"""The site's page for each proto file and service, and the files to download."""

from typing import Final

FILES: Final = {
    "cartgrpc/v1/cart_service.proto": "cart-service",
    "cartgrpc/v1/cart.proto": "resources",
    "cartgrpc/v1/cart_admin_service.proto": "cart-admin-service",
    "cartgrpc/reservation/v1/reservation.proto": "reservation-service",
    "cartgrpc/simulator/v1/simulator.proto": "simulator-service",
}
"""The page of each file, below `reference/` and without its suffix."""

PAGES: Final = {
    "CartService": "cart-service.md",
    "CartAdminService": "cart-admin-service.md",
    "ReservationService": "reservation-service.md",
    "SimulatorService": "simulator-service.md",
}
"""The page of each service, relative to the other pages of the reference."""

OPENAPI: Final = "protos/cartgrpc/reservation/v1/reservation.openapi.yaml"
"""The file with the contract for Reservation APIs over HTTP."""

DOWNLOADS: Final = "files"
"""The folder of the files that readers can download."""
