"""Offline analysis of workdirs. So far it holds the published summaries of finished runs."""
