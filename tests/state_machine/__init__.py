"""Every RPC of CartService against a plain model in memory, over a real server on both databases."""
