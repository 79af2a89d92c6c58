"""Who calls, what they may do and how much of it: tokens, scopes, quotas, audit, both guards."""
