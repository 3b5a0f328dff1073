"""What several methods are made from: learners with a backbone, and weights of their own."""
