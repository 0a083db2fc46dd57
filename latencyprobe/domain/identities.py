"""The names in the certificates, by which agent and operator identify each other."""

AGENT_NAME = "agent.latencyprobe.io"
OPERATOR_NAME = "operator.latencyprobe.io"
