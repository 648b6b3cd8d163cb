"""The reservation protocol: intent, observation and the pure rules between them. Standard library only.

Nothing here knows carts, SQL or a network.
"""
