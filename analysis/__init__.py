"""Offline analysis of workdirs: statistics, tables, figures and one page, from plain files."""
