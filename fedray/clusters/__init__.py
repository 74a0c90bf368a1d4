"""What a cluster's file must say so that owners are where they belong: rules on the parsed file, and the way up.

Knows two kinds of file: those of Ray's own launcher, and manifests for KubeRay. Imports no Ray: what needs it, such as
Ray's own schema or the commands ``ray up`` and ``ray down``, is handed in.
"""
