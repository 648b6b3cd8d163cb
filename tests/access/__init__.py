"""Real servers with TLS, tokens and certificates: who gets in at which port."""
