"""Other libraries' worlds: scikit-learn and learn2learn."""
