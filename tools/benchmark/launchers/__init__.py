"""Every launcher, tried for real on two machines made of namespaces; see `__main__`."""
