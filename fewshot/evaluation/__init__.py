"""From a `Run` to a `Result`: what is asked, what it is asked of, the answers, what is measured, and where it is kept."""
