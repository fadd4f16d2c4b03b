"""Small models of every kind that people bring, and what Chameleon makes of them."""
