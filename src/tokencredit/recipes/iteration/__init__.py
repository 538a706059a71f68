"""`iterate-preferences`: offline losses on the policy's own responses, round by round."""
