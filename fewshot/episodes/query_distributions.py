"""How the queries of an episode are spread over its classes."""

# balanced: equally many of every class; dirichlet: shares from a Dirichlet distribution; k_eff: of a few of the classes
# only; natural: as the images of the classes are. `EpisodeSampler` says how each is drawn.
QUERY_DISTRIBUTIONS = ("balanced", "dirichlet", "k_eff", "natural")
