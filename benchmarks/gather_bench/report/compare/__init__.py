"""What has changed between two reports, and what of it is beyond noise."""
