"""The built-in task: a small grammar of film reviews whose true token credit is known."""
