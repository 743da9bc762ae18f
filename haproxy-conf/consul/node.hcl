# What a sidecar of role "node" may do in Consul: serve, and lead. Put the name of the Consul agent that it talks to for AGENT, and
# the prefix of SPOACME_STORE for le.

# A leader writes everything below the prefix.
key_prefix "le/" {
  policy = "write"
}

# The lock of the leader, and being known to be alive.
session "AGENT" {
  policy = "write"
}

# The node on Consul's own pages.
service "spoacme" {
  policy = "write"
}
