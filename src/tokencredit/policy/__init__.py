"""Train a policy on token rewards: rollout, advantages, losses."""
