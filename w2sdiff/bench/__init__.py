"""Runs, scores, statistics and reports: is it better, by how much, how sure, at what cost?"""
