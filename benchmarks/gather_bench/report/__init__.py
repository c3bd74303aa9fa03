"""What a report of `gather bench` is turned into: a page, a flat table, and a comparison with another report."""
