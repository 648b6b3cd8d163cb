"""The carts of demo shops: their services on our carts, their variables, and who may call them.

Each service is served beside CartService, behind the same layers. What a cart does stays in `carts`: here are only
their messages, and calls made from them.
"""
