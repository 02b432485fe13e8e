# The supervisor: our static binary, the CA bundle, empty directories of the right owner, nothing else. No shell, no package manager.
# The context is prepared by scripts/image.sh from the binary cargo has built, so that this needs neither a registry nor a compiler:
#   ./scripts/image.sh supervisor --tag dockwarden:local
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# Agents, prompts and policy as shipped (mount your own over them), and the mount points of state, backups and memory: a new named volume
# takes owner and mode from here.
COPY --chown=10001:10001 rootfs/ /
COPY dockwarden /dockwarden
ENV DOCKWARDEN_HOME=/var/lib/dockwarden \
    DOCKWARDEN_CONFIG=/etc/dockwarden \
    MCP_MEMORY_PATH=/var/lib/dockwarden/memory \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 10001:10001
EXPOSE 7420
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 CMD ["/dockwarden", "health", "--self"]
ENTRYPOINT ["/dockwarden"]
CMD ["serve"]
