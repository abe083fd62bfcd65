-- Schema version 5: tenants are kept apart by the server. A tenant's mounter on a node has a login of its own, for which row-level
-- security is in force; who owns these tables, or has the owner's rights, is not restricted.
--
-- A table that a later version adds needs there: ENABLE ROW LEVEL SECURITY, and policies with grants for what a mounter does with it.
-- Without any it is denied to mounters. A test goes through the catalogue and names the table that was forgotten.
--
-- Grants go to PUBLIC: what decides is who stands in `login`, and nobody needs to be a member of anything.

-- Who is a tenant's login. Made and taken away by the owner, together with the role.
CREATE TABLE tarbox.login (
    role   name PRIMARY KEY,
    tenant uuid NOT NULL,
    family bigint NOT NULL,
    node   text NOT NULL
);
CREATE INDEX login_tenant ON tarbox.login (tenant);
CREATE INDEX login_family ON tarbox.login (family);

-- Which branch a login may see up to which layer. The greatest number: the branch is its tenant's own, to be written. Kept right by
-- triggers on `branch`, thus in the transactions that make, clone, restore, flatten and remove.
CREATE TABLE tarbox.reach (
    role   name NOT NULL REFERENCES tarbox.login ON DELETE CASCADE,
    family bigint NOT NULL,
    branch bigint NOT NULL,
    upto   bigint NOT NULL,
    PRIMARY KEY (role, family, branch)
);
CREATE INDEX reach_branch ON tarbox.reach (family, branch);

-- Whose session it is: of those that there are, the owner's.
ALTER TABLE tarbox.session ADD COLUMN login name NOT NULL DEFAULT session_user;

-- What is asked of a login ------------------------------------------------------------------------
-- The functions run with the owner's rights, under a fixed search path; a login is known by session_user, which SET ROLE leaves alone.
--
-- Those called `own_…` are declared IMMUTABLE though they read tables: the planner then puts their values into the plan, and rows are
-- compared with constants (measured: with subqueries in their place a lookup takes 1.2 times as long, a commit 1.5 times). A plan that
-- depends on row-level security is made anew whenever the user is another. Tenant and family of a login never change. A head, or what is
-- reached, may be out of date in a plan: such a value was right for this login once and shows nothing younger than it did then; what it
-- lacks is asked for by `sees` and `owns`, row by row.

CREATE FUNCTION tarbox.own_tenant() RETURNS uuid
LANGUAGE plpgsql IMMUTABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT l.tenant FROM tarbox.login l WHERE l.role = session_user);
END $$;

CREATE FUNCTION tarbox.own_family() RETURNS bigint
LANGUAGE plpgsql IMMUTABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT l.family FROM tarbox.login l WHERE l.role = session_user);
END $$;

CREATE FUNCTION tarbox.own_head() RETURNS bigint
LANGUAGE plpgsql IMMUTABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT t.head_branch FROM tarbox.login l JOIN tarbox.tenant t ON t.id = l.tenant WHERE l.role = session_user);
END $$;

-- The youngest branches: enough for nearly all that is read, whatever there is.
CREATE FUNCTION tarbox.own_reach() RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT jsonb_object_agg(r.branch::text, r.upto) FROM (
        SELECT r.branch, r.upto FROM tarbox.login l JOIN tarbox.reach r ON r.role = l.role AND r.family = l.family
        WHERE l.role = session_user ORDER BY r.branch DESC LIMIT 64) r);
END $$;

CREATE FUNCTION tarbox.sees(of_family bigint, of_branch bigint, at_layer bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM tarbox.reach r WHERE r.role = session_user AND r.family = of_family AND r.branch = of_branch
        AND r.upto >= at_layer);
END $$;

CREATE FUNCTION tarbox.owns(of_family bigint, of_branch bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN tarbox.sees(of_family, of_branch, 9223372036854775807);
END $$;

-- Whether a block's number was handed out to the login's tenant. Ranges do not overlap: the nearest one decides.
CREATE FUNCTION tarbox.is_reserved(of_family bigint, of_block bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN COALESCE((SELECT r.first + r.count > of_block FROM tarbox.login l
        JOIN tarbox.reservation r ON r.family = l.family AND r.tenant = l.tenant
        WHERE l.role = session_user AND l.family = of_family AND r.first <= of_block ORDER BY r.first DESC LIMIT 1), false);
END $$;

-- Whether whoever is connected has the owner's rights. Only in functions that run with them.
CREATE FUNCTION tarbox.is_owner() RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN pg_has_role(session_user, current_user, 'USAGE');
END $$;

-- Refuses whoever is neither the owner nor a login of this tenant.
CREATE FUNCTION tarbox.check_login(of_tenant uuid) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT tarbox.is_owner()
        AND NOT EXISTS (SELECT FROM tarbox.login l WHERE l.role = session_user AND l.tenant = of_tenant) THEN
        RAISE EXCEPTION '% is no login of tenant %', session_user, of_tenant USING ERRCODE = 'insufficient_privilege';
    END IF;
END $$;

-- What mounters do that no policy can judge ---------------------------------------------------------

-- Hands out block numbers; NULL where the family is gone.
CREATE FUNCTION tarbox.reserve_blocks(of_family bigint, of_tenant uuid, wanted bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    begins bigint;
BEGIN
    PERFORM tarbox.check_login(of_tenant);
    -- Nobody takes numbers back, or all that there are.
    IF wanted NOT BETWEEN 1 AND 1048576 THEN
        RAISE EXCEPTION '% blocks: allowed are 1 to 1048576', wanted USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT tarbox.is_owner() AND NOT EXISTS (SELECT FROM tarbox.login l WHERE l.role = session_user AND l.family = of_family) THEN
        RAISE EXCEPTION 'family % is another''s', of_family USING ERRCODE = 'insufficient_privilege';
    END IF;
    UPDATE tarbox.family f SET next_block = f.next_block + wanted WHERE f.family = of_family
        RETURNING f.next_block - wanted INTO begins;
    INSERT INTO tarbox.reservation (family, first, count, tenant, epoch)
        SELECT of_family, begins, wanted, t.id, t.epoch FROM tarbox.tenant t WHERE t.id = of_tenant AND begins IS NOT NULL;
    RETURN begins;
END $$;

-- Stores parts of blocks, each with the number of its parts in `whole` and `parts_of`; parts of an earlier, longer upload go.
-- A login may do so with blocks that were handed out to its tenant and that no commit has made visible: others may refer to those.
CREATE FUNCTION tarbox.upload_blocks(
    of_family bigint, blocks bigint[], parts int[], bytes bytea[], whole bigint[], parts_of int[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT tarbox.is_owner() AND (
        EXISTS (SELECT FROM unnest(blocks) k WHERE k <> ALL (whole))
        OR EXISTS (SELECT FROM unnest(whole) k WHERE NOT tarbox.is_reserved(of_family, k)
            OR EXISTS (SELECT FROM tarbox.block b WHERE b.family = of_family AND b.block = k OFFSET 0))) THEN
        RAISE EXCEPTION 'blocks of family % that are not to be written by %', of_family, session_user
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    DELETE FROM tarbox.block_part p USING (
        SELECT o.at FROM unnest(whole, parts_of) AS k(block, parts) CROSS JOIN LATERAL (
            SELECT t.ctid AS at FROM tarbox.block_part t
            WHERE t.family = of_family AND t.block = k.block AND t.part >= k.parts OFFSET 0) o OFFSET 0) o
        WHERE p.ctid = o.at;
    INSERT INTO tarbox.block_part (family, block, part, data)
        SELECT of_family, u.block, u.part, u.data FROM unnest(blocks, parts, bytes) AS u(block, part, data)
        ON CONFLICT (family, block, part) DO UPDATE SET data = EXCLUDED.data;
END $$;

-- Who reaches what is kept right --------------------------------------------------------------------

-- Finds out anew what a login reaches: its tenant's branches, and those that they begin at.
CREATE FUNCTION tarbox.refresh_reach(of_role name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM tarbox.login l WHERE l.role = of_role FOR UPDATE;
    DELETE FROM tarbox.reach r WHERE r.role = of_role;
    INSERT INTO tarbox.reach (role, family, branch, upto)
        WITH RECURSIVE line AS (
            SELECT b.family, b.branch, b.parent, b.parent_layer, 9223372036854775807 AS upto
            FROM tarbox.login l JOIN tarbox.branch b ON b.family = l.family AND b.tenant = l.tenant WHERE l.role = of_role
            UNION
            SELECT b.family, b.branch, b.parent, b.parent_layer, c.parent_layer
            FROM line c JOIN tarbox.branch b ON b.family = c.family AND b.branch = c.parent)
        SELECT of_role, line.family, line.branch, max(line.upto) FROM line GROUP BY line.family, line.branch;
END $$;

-- A login begins to count. Locks: the tenant against a new branch of its own, then the family against changes of those there are.
CREATE FUNCTION tarbox.admit(of_role name, of_tenant uuid, of_node text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    of_family bigint;
BEGIN
    SELECT t.family INTO of_family FROM tarbox.tenant t WHERE t.id = of_tenant FOR NO KEY UPDATE;
    PERFORM FROM tarbox.family f WHERE f.family = of_family FOR NO KEY UPDATE;
    INSERT INTO tarbox.login (role, tenant, family, node) SELECT of_role, of_tenant, of_family, of_node WHERE of_family IS NOT NULL
        ON CONFLICT (role) DO UPDATE SET tenant = EXCLUDED.tenant, family = EXCLUDED.family, node = EXCLUDED.node;
    PERFORM tarbox.refresh_reach(of_role);
END $$;

CREATE FUNCTION tarbox.before_branch() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Numbers are unique among all families: none is chosen by a login.
    IF NOT tarbox.is_owner() THEN
        NEW.branch := nextval('tarbox.branch_id');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER before_branch BEFORE INSERT ON tarbox.branch FOR EACH ROW EXECUTE FUNCTION tarbox.before_branch();

-- What a new branch begins at its tenant's logins reach already: a tenant goes back within its own history only.
CREATE FUNCTION tarbox.after_branch() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO tarbox.reach (role, family, branch, upto)
        SELECT l.role, NEW.family, NEW.branch, 9223372036854775807 FROM tarbox.login l WHERE l.tenant = NEW.tenant
        ON CONFLICT (role, family, branch) DO UPDATE SET upto = EXCLUDED.upto;
    RETURN NULL;
END $$;
CREATE TRIGGER after_branch AFTER INSERT ON tarbox.branch FOR EACH ROW EXECUTE FUNCTION tarbox.after_branch();

-- A branch begins somewhere else, or is gone: what is reached through it may be less.
CREATE FUNCTION tarbox.after_line() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM tarbox.reach r WHERE r.family = OLD.family AND r.branch = OLD.branch) THEN
        PERFORM FROM tarbox.family f WHERE f.family = OLD.family FOR NO KEY UPDATE;
        PERFORM tarbox.refresh_reach(r.role) FROM (
            SELECT r.role FROM tarbox.reach r WHERE r.family = OLD.family AND r.branch = OLD.branch ORDER BY r.role) r;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER after_line AFTER UPDATE OF parent, parent_layer OR DELETE ON tarbox.branch
    FOR EACH ROW EXECUTE FUNCTION tarbox.after_line();

-- A login does not see who begins at its tenant's layers: they are looked for with the owner's eyes.
CREATE FUNCTION tarbox.before_layer_goes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM tarbox.branch b
        WHERE b.family = OLD.family AND b.parent = OLD.branch AND b.parent_layer = OLD.layer) AND NOT tarbox.is_owner() THEN
        RAISE EXCEPTION 'a branch begins at layer % of branch %', OLD.layer, OLD.branch
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'layer_in_use';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER before_layer_goes BEFORE DELETE ON tarbox.layer FOR EACH ROW EXECUTE FUNCTION tarbox.before_layer_goes();

CREATE FUNCTION tarbox.after_tenant() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM tarbox.login l WHERE l.tenant = OLD.id;
    RETURN NULL;
END $$;
CREATE TRIGGER after_tenant AFTER DELETE ON tarbox.tenant FOR EACH ROW EXECUTE FUNCTION tarbox.after_tenant();

-- Functions of the owner alone; the other ones answer a login about itself, or check it.
REVOKE ALL ON FUNCTION tarbox.refresh_reach(name), tarbox.admit(name, uuid, text), tarbox.before_branch(), tarbox.after_branch(),
    tarbox.after_line(), tarbox.before_layer_goes(), tarbox.after_tenant() FROM PUBLIC;

-- What a login may do ---------------------------------------------------------------------------------

GRANT USAGE ON SCHEMA tarbox TO PUBLIC;
GRANT USAGE ON SEQUENCE tarbox.branch_id TO PUBLIC;

-- Nothing, where nothing more is said: `family`, `leader`, `reservation` and all that is made later.
DO $$
DECLARE
    found name;
BEGIN
    FOR found IN SELECT c.relname FROM pg_catalog.pg_class c WHERE c.relnamespace = 'tarbox'::regnamespace AND c.relkind IN ('r', 'p') LOOP
        EXECUTE format('ALTER TABLE tarbox.%I ENABLE ROW LEVEL SECURITY', found);
    END LOOP;
END $$;

GRANT SELECT ON tarbox.schema_version, tarbox.login, tarbox.reach, tarbox.volume TO PUBLIC;
CREATE POLICY all_read ON tarbox.schema_version FOR SELECT USING (true);
CREATE POLICY own_read ON tarbox.login FOR SELECT USING (role = session_user);
CREATE POLICY own_read ON tarbox.reach FOR SELECT USING (role = session_user);
CREATE POLICY own_read ON tarbox.volume FOR SELECT USING (id = tarbox.own_tenant());

-- Name, family, state and limits are the owner's. A head is put on branches of the tenant only.
GRANT SELECT, UPDATE (head_branch, cur_layer, last_view, prev_layer, prev_view, used_bytes, used_inodes, next_ino, seq, epoch, token,
    session, held, prev_session, commit_epoch, wanted_at) ON tarbox.tenant TO PUBLIC;
CREATE POLICY own_read ON tarbox.tenant FOR SELECT USING (id = tarbox.own_tenant());
CREATE POLICY own_write ON tarbox.tenant FOR UPDATE USING (id = tarbox.own_tenant())
    WITH CHECK (id = tarbox.own_tenant() AND (head_branch = tarbox.own_head() OR tarbox.owns(family, head_branch)));

-- The session that holds the tenant is shown, whoever opened it: by it the lease is judged. None counts for longer than one of ours can.
GRANT SELECT, DELETE, UPDATE (beat_at, continuous_since),
    INSERT (session, node, boot_id, pid_namespace, pid, start_time, lease, beat_at, continuous_since) ON tarbox.session TO PUBLIC;
CREATE POLICY own_read ON tarbox.session FOR SELECT
    USING (login = session_user OR session = (SELECT t.session FROM tarbox.tenant t WHERE t.id = tarbox.own_tenant()));
CREATE POLICY own_open ON tarbox.session FOR INSERT WITH CHECK (login = session_user AND tarbox.own_tenant() IS NOT NULL
    AND lease <= interval '1 hour' AND beat_at <= clock_timestamp());
CREATE POLICY own_beat ON tarbox.session FOR UPDATE USING (login = session_user)
    WITH CHECK (login = session_user AND beat_at <= clock_timestamp());
CREATE POLICY own_end ON tarbox.session FOR DELETE USING (login = session_user);

-- Updates of a column are granted, and refused by the policy, where a row is only to be locked.
GRANT SELECT, INSERT, UPDATE (depth) ON tarbox.branch TO PUBLIC;
CREATE POLICY line_read ON tarbox.branch FOR SELECT
    USING (tenant = tarbox.own_tenant() OR (family = tarbox.own_family() AND tarbox.sees(family, branch, 0)));
CREATE POLICY own_begin ON tarbox.branch FOR INSERT WITH CHECK (tenant = tarbox.own_tenant() AND family = tarbox.own_family()
    AND parent_layer IS NOT NULL AND tarbox.sees(family, parent, parent_layer));
CREATE POLICY own_lock ON tarbox.branch FOR UPDATE USING (tenant = tarbox.own_tenant()) WITH CHECK (false);

GRANT SELECT, INSERT, DELETE, UPDATE (seq) ON tarbox.layer TO PUBLIC;
CREATE POLICY line_read ON tarbox.layer FOR SELECT
    USING (tenant = tarbox.own_tenant() OR (family = tarbox.own_family() AND tarbox.sees(family, branch, layer)));
CREATE POLICY own_seal ON tarbox.layer FOR INSERT WITH CHECK (tenant = tarbox.own_tenant() AND family = tarbox.own_family()
    AND (branch = tarbox.own_head() OR tarbox.owns(family, branch)));
CREATE POLICY line_lock ON tarbox.layer FOR UPDATE
    USING (tenant = tarbox.own_tenant() OR (family = tarbox.own_family() AND tarbox.sees(family, branch, layer))) WITH CHECK (false);
CREATE POLICY own_drop ON tarbox.layer FOR DELETE USING (tenant = tarbox.own_tenant());

-- Rows: what is reached may be read, what is own may be written. A version that was moved to the history stays as it is.
-- IS TRUE keeps the planner from taking an index for the family alone, where a statement names a row by its place (ctid).
DO $$
DECLARE
    kind name;
    own constant text := '(family = tarbox.own_family()) IS TRUE AND (branch = tarbox.own_head() OR tarbox.owns(family, branch))';
    reached constant text := '(family = tarbox.own_family()) IS TRUE AND (branch = tarbox.own_head()
        OR born <= (tarbox.own_reach() ->> branch::text)::bigint OR tarbox.sees(family, branch, born))';
BEGIN
    FOREACH kind IN ARRAY ARRAY['inode', 'dentry', 'xattr', 'ext', 'patch', 'inode_h', 'dentry_h', 'xattr_h', 'ext_h'] LOOP
        EXECUTE format('GRANT SELECT, INSERT ON tarbox.%I TO PUBLIC', kind);
        EXECUTE format('CREATE POLICY line_read ON tarbox.%I FOR SELECT USING (%s)', kind, reached);
        EXECUTE format('CREATE POLICY own_add ON tarbox.%I FOR INSERT WITH CHECK (%s)', kind, own);
        IF kind NOT LIKE '%\_h' THEN
            EXECUTE format('GRANT UPDATE, DELETE ON tarbox.%I TO PUBLIC', kind);
            EXECUTE format('CREATE POLICY own_change ON tarbox.%I FOR UPDATE USING (%s)', kind, own);
            EXECUTE format('CREATE POLICY own_remove ON tarbox.%I FOR DELETE USING (%s)', kind, own);
        END IF;
    END LOOP;
END $$;

GRANT SELECT, INSERT ON tarbox.dead_data TO PUBLIC;
CREATE POLICY line_read ON tarbox.dead_data FOR SELECT
    USING ((family = tarbox.own_family()) IS TRUE AND (branch = tarbox.own_head() OR tarbox.sees(family, branch, died)));
CREATE POLICY own_add ON tarbox.dead_data FOR INSERT
    WITH CHECK ((family = tarbox.own_family()) IS TRUE AND (branch = tarbox.own_head() OR tarbox.owns(family, branch)));

-- What is to be pruned and collected is noted by a login, and done by the owner, who sees all that may still be needed.
GRANT INSERT ON tarbox.prune, tarbox.dropped TO PUBLIC;
CREATE POLICY own_add ON tarbox.prune FOR INSERT WITH CHECK ((family = tarbox.own_family()) IS TRUE AND tarbox.owns(family, branch));
CREATE POLICY own_add ON tarbox.dropped FOR INSERT WITH CHECK ((family = tarbox.own_family()) IS TRUE);

-- Blocks are shared in a family: read by all, made by whom the number was handed out to, changed by nobody.
GRANT SELECT, INSERT, UPDATE (codec) ON tarbox.block TO PUBLIC;
GRANT SELECT ON tarbox.block_part TO PUBLIC;
CREATE POLICY family_read ON tarbox.block FOR SELECT USING ((family = tarbox.own_family()) IS TRUE);
CREATE POLICY own_add ON tarbox.block FOR INSERT WITH CHECK ((family = tarbox.own_family()) IS TRUE AND tarbox.is_reserved(family, block));
CREATE POLICY family_lock ON tarbox.block FOR UPDATE USING ((family = tarbox.own_family()) IS TRUE) WITH CHECK (false);
CREATE POLICY family_read ON tarbox.block_part FOR SELECT USING ((family = tarbox.own_family()) IS TRUE);

-- Checkpoints are a mounter's to make; snapshots of CSI it only settles, and on layers of its tenant.
GRANT SELECT, INSERT, DELETE, UPDATE (branch, layer, name, sealed_at, used_bytes, used_inodes) ON tarbox.snapshot TO PUBLIC;
CREATE POLICY own_read ON tarbox.snapshot FOR SELECT USING (tenant = tarbox.own_tenant());
CREATE POLICY own_note ON tarbox.snapshot FOR INSERT WITH CHECK (tenant = tarbox.own_tenant() AND purpose = 3 AND layer IS NULL);
CREATE POLICY own_settle ON tarbox.snapshot FOR UPDATE USING (tenant = tarbox.own_tenant())
    WITH CHECK (tenant = tarbox.own_tenant() AND EXISTS (SELECT FROM tarbox.layer y
        WHERE y.tenant = tarbox.own_tenant() AND y.branch = snapshot.branch AND y.layer = snapshot.layer));
CREATE POLICY own_forget ON tarbox.snapshot FOR DELETE USING (tenant = tarbox.own_tenant() AND purpose = 3);

GRANT SELECT, INSERT, DELETE, UPDATE (branch, layer) ON tarbox.tag TO PUBLIC;
CREATE POLICY own_all ON tarbox.tag USING (tenant = tarbox.own_tenant());
