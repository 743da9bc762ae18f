# What a sidecar of role "issuer" may do in Consul: lead, with no HAProxy beside it. Put the name of the Consul agent that it
# talks to for AGENT, and the prefix of SPOACME_STORE for le.

# A leader writes everything below the prefix.
key_prefix "le/" {
  policy = "write"
}

# The lock of the leader.
session "AGENT" {
  policy = "write"
}

# The issuer on Consul's own pages.
service "spoacme" {
  policy = "write"
}
