"""Drawings of measurements, as SVG to stand in a page; style.css has their colours."""
