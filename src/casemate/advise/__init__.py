"""Findings about images and configurations, with cause and remedy; pure."""
