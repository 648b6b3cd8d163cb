"""What a cart is: frozen values and pure rules, with the standard library only."""
