"""What has no domain in it: errors, checks, registry, files, hashing, seeding, provenance, processes as a team."""
