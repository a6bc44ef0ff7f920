"""What happens before hours are spent: init, check, preflight."""
