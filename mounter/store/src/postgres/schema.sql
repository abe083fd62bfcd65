-- Schema version 1. Migrations only add; what nobody reads any more goes with `tarbox admin finalize`.
-- Every key begins with the family. History tables have the columns of their table and `died`.
-- Secondary indexes are partial, on conditions that always hold and that only the statements meant for them repeat:
-- else the planner, as long as it has no statistics, takes an index that shares a prefix with the key it should take
-- (measured: it looked a name up by walking the whole directory in the order of cookies).

CREATE SEQUENCE tarbox.family_id;
CREATE SEQUENCE tarbox.branch_id;

CREATE TABLE tarbox.family (
    family      bigint PRIMARY KEY,
    next_block  bigint NOT NULL DEFAULT 1
) WITH (fillfactor = 50);

CREATE TABLE tarbox.session (
    session          uuid PRIMARY KEY,
    node             text NOT NULL,
    boot_id          text NOT NULL,
    pid_namespace    text NOT NULL,
    pid              bigint NOT NULL,
    start_time       bigint NOT NULL,
    lease            interval NOT NULL,
    beat_at          timestamptz NOT NULL,
    continuous_since timestamptz NOT NULL
) WITH (fillfactor = 50);

-- The one row that every commit locks: whatever a commit has to agree on stands in it.
CREATE TABLE tarbox.tenant (
    id            uuid PRIMARY KEY,
    family        bigint NOT NULL,
    name          text NOT NULL,
    deleted       boolean NOT NULL DEFAULT false,
    head_branch   bigint NOT NULL,
    cur_layer     bigint NOT NULL DEFAULT 1,
    -- Greatest layer of the head branch that a kept view shows (a checkpoint, a fork); -1 = none.
    last_view     bigint NOT NULL DEFAULT -1,
    -- What cur_layer and last_view were before the commit that sealed: RETURNING shows new values only.
    prev_layer    bigint NOT NULL DEFAULT 1,
    prev_view     bigint NOT NULL DEFAULT -1,
    quota_bytes   bigint NOT NULL,
    quota_inodes  bigint NOT NULL,
    max_file      bigint NOT NULL,
    block_size    bigint NOT NULL,
    compression   smallint NOT NULL,
    used_bytes    bigint NOT NULL,
    used_inodes   bigint NOT NULL,
    next_ino      bigint NOT NULL,
    seq           bigint NOT NULL DEFAULT 0,
    epoch         bigint NOT NULL DEFAULT 0,
    token         uuid NOT NULL,
    session       uuid,
    held          boolean NOT NULL DEFAULT false,
    -- Whom the lease was taken from while it was held, so that its heartbeat learns of the new epoch.
    prev_session  uuid,
    -- Epoch of the last commit: journals of leases since then go on where the database stands.
    commit_epoch  bigint NOT NULL DEFAULT 0,
    wanted_at     timestamptz
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX tenant_name ON tarbox.tenant (name) WHERE NOT deleted;
CREATE INDEX tenant_session ON tarbox.tenant (session);
CREATE INDEX tenant_prev_session ON tarbox.tenant (prev_session);
CREATE INDEX tenant_family ON tarbox.tenant (family);
CREATE INDEX tenant_head ON tarbox.tenant (head_branch);

CREATE TABLE tarbox.branch (
    family       bigint NOT NULL,
    branch       bigint NOT NULL,
    tenant       uuid NOT NULL,
    parent       bigint,
    parent_layer bigint,
    depth        int NOT NULL,
    ino_floor    bigint NOT NULL,
    -- Position of its tenant when it began: no commit since, nothing to seal.
    fork_seq     bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (family, branch)
);
CREATE INDEX branch_parent ON tarbox.branch (family, parent, parent_layer) WHERE parent IS NOT NULL;

CREATE TABLE tarbox.layer (
    family      bigint NOT NULL,
    branch      bigint NOT NULL,
    layer       bigint NOT NULL,
    tenant      uuid NOT NULL,
    name        text NOT NULL,
    request     text NOT NULL,
    seq         bigint NOT NULL,
    -- Every number in the layer is below: a clone goes on from here.
    next_ino    bigint NOT NULL,
    sealed_at   bigint NOT NULL DEFAULT extract(epoch FROM clock_timestamp())::bigint,
    used_bytes  bigint NOT NULL,
    used_inodes bigint NOT NULL,
    PRIMARY KEY (family, branch, layer)
);
CREATE UNIQUE INDEX layer_request ON tarbox.layer (tenant, request);
CREATE UNIQUE INDEX layer_name ON tarbox.layer (tenant, name);

-- Rows -------------------------------------------------------------------------------------------

CREATE TABLE tarbox.inode (
    family bigint NOT NULL, branch bigint NOT NULL, ino bigint NOT NULL,
    born bigint NOT NULL, dead boolean NOT NULL,
    mode int NOT NULL, uid bigint NOT NULL, gid bigint NOT NULL, rdev bigint NOT NULL, nlink bigint NOT NULL,
    size bigint NOT NULL,
    atime bigint NOT NULL, atime_ns int NOT NULL,
    mtime bigint NOT NULL, mtime_ns int NOT NULL,
    ctime bigint NOT NULL, ctime_ns int NOT NULL,
    dir_parent bigint NOT NULL, did bigint NOT NULL, cut bigint NOT NULL, charge bigint NOT NULL,
    prealloc bytea NOT NULL, target bytea NOT NULL,
    PRIMARY KEY (family, branch, ino)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX inode_orphan ON tarbox.inode (family, branch, ino) WHERE nlink = 0 AND NOT dead;

CREATE TABLE tarbox.inode_h (LIKE tarbox.inode, died bigint NOT NULL, PRIMARY KEY (family, branch, ino, died));
CREATE INDEX inode_h_died ON tarbox.inode_h (family, branch, died) WHERE died > 0;
CREATE INDEX inode_h_orphan ON tarbox.inode_h (family, branch, ino) WHERE nlink = 0 AND NOT dead;

CREATE TABLE tarbox.dentry (
    family bigint NOT NULL, branch bigint NOT NULL, parent bigint NOT NULL, name bytea NOT NULL,
    -- ino NULL = whiteout: the name is gone though an ancestor has it.
    born bigint NOT NULL, ino bigint, kind int NOT NULL, cookie bigint NOT NULL,
    PRIMARY KEY (family, branch, parent, name)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX dentry_cookie ON tarbox.dentry (family, branch, parent, cookie) WHERE ino IS NOT NULL;

CREATE TABLE tarbox.dentry_h (LIKE tarbox.dentry, died bigint NOT NULL, PRIMARY KEY (family, branch, parent, name, died));
CREATE INDEX dentry_h_died ON tarbox.dentry_h (family, branch, died) WHERE died > 0;
CREATE INDEX dentry_h_cookie ON tarbox.dentry_h (family, branch, parent, cookie) WHERE ino IS NOT NULL;

CREATE TABLE tarbox.xattr (
    family bigint NOT NULL, branch bigint NOT NULL, ino bigint NOT NULL,
    -- value NULL = whiteout.
    born bigint NOT NULL, value bytea,
    PRIMARY KEY (family, branch, ino)
);
CREATE TABLE tarbox.xattr_h (LIKE tarbox.xattr, died bigint NOT NULL, PRIMARY KEY (family, branch, ino, died));
CREATE INDEX xattr_h_died ON tarbox.xattr_h (family, branch, died) WHERE died > 0;

CREATE TABLE tarbox.ext (
    family bigint NOT NULL, branch bigint NOT NULL, did bigint NOT NULL,
    -- Block index; -1 = the row says from which block on (column `block`) ancestors' rows are invisible.
    blk bigint NOT NULL,
    -- kind: 0 hole, 1 block, 2 inline, 3 the row at blk -1.
    born bigint NOT NULL, kind smallint NOT NULL, block bigint, data bytea, alloc bytea NOT NULL,
    patches int NOT NULL DEFAULT 0, patch_bytes int NOT NULL DEFAULT 0,
    PRIMARY KEY (family, branch, did, blk)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05, toast_tuple_target = 8160);
ALTER TABLE tarbox.ext ALTER COLUMN data SET STORAGE MAIN;
CREATE INDEX ext_block ON tarbox.ext (family, block) WHERE kind = 1;

CREATE TABLE tarbox.ext_h (LIKE tarbox.ext, died bigint NOT NULL, PRIMARY KEY (family, branch, did, blk, died))
    WITH (toast_tuple_target = 8160);
ALTER TABLE tarbox.ext_h ALTER COLUMN data SET STORAGE MAIN;
CREATE INDEX ext_cut ON tarbox.ext (family, branch, did) WHERE kind = 3;
CREATE INDEX ext_h_cut ON tarbox.ext_h (family, branch, did) WHERE kind = 3;
CREATE INDEX ext_h_died ON tarbox.ext_h (family, branch, died) WHERE died > 0;
CREATE INDEX ext_h_block ON tarbox.ext_h (family, block) WHERE kind = 1;

-- A patch belongs to the version `born` of its extent, wherever that version is moved: it is never moved itself.
CREATE TABLE tarbox.patch (
    family bigint NOT NULL, branch bigint NOT NULL, did bigint NOT NULL, blk bigint NOT NULL,
    born bigint NOT NULL, seq bigint NOT NULL, off bigint NOT NULL, data bytea NOT NULL,
    PRIMARY KEY (family, branch, did, blk, born, seq, off)
) WITH (autovacuum_vacuum_scale_factor = 0.02, toast_tuple_target = 8160);
ALTER TABLE tarbox.patch ALTER COLUMN data SET STORAGE MAIN;

-- Contents gone, whose rows the collector is to reap.
CREATE TABLE tarbox.dead_data (
    family bigint NOT NULL, branch bigint NOT NULL, did bigint NOT NULL, died bigint NOT NULL,
    PRIMARY KEY (family, branch, did)
);

-- History that deleted views needed: died in (below, upto], born > above. `current`: nobody writes the branch any more,
-- its current rows born > above go as well, and the branch itself where no view is left.
CREATE TABLE tarbox.prune (
    family bigint NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, branch bigint NOT NULL,
    above bigint NOT NULL, below bigint NOT NULL, upto bigint NOT NULL, current boolean NOT NULL,
    PRIMARY KEY (family, id)
);

-- Blocks -----------------------------------------------------------------------------------------

CREATE TABLE tarbox.block (
    family bigint NOT NULL, block bigint NOT NULL, hash bytea NOT NULL, len bigint NOT NULL, codec smallint NOT NULL,
    PRIMARY KEY (family, block)
);
CREATE INDEX block_hash ON tarbox.block (family, hash) WHERE len >= 0;

CREATE TABLE tarbox.block_part (
    family bigint NOT NULL, block bigint NOT NULL, part int NOT NULL, data bytea NOT NULL,
    PRIMARY KEY (family, block, part)
) WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.2);
-- MAIN keeps a part in its page; it is not compressible (or compressed already), so that pglz's try costs little.
ALTER TABLE tarbox.block_part ALTER COLUMN data SET STORAGE MAIN;

-- Ids handed out: parts without a header, of a range whose epoch is over, are uploads of a mounter that died.
CREATE TABLE tarbox.reservation (
    family bigint NOT NULL, first bigint NOT NULL, count bigint NOT NULL, tenant uuid NOT NULL, epoch bigint NOT NULL,
    PRIMARY KEY (family, first)
);

-- Candidates for the collector, perhaps more than once: no unique key, so that commits never wait for each other.
CREATE TABLE tarbox.dropped (
    family bigint NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, block bigint NOT NULL,
    PRIMARY KEY (family, id)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
