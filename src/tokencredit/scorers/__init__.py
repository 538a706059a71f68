"""Rewards of a policy's responses in the policy's own tokens, whoever gives them."""
