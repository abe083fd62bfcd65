//! Everything that a tenant's login must not be able to do, tried: in every table and with every function that the catalogue names, so
//! that what a later version adds is tried as well, or named as not tried.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

type Sql<T> = Result<T, sqlx::Error>;

/// Shown to everybody, changed by nobody.
const PUBLIC: [&str; 1] = ["schema_version"];
/// Read by a family, changed by nobody.
const SHARED: [&str; 2] = ["block", "block_part"];

/// Both sides: who owns everything, and who is to be kept to its tenant.
struct Trial {
    owner: PgConnection,
    login: PgConnection,
    role: String,
    tenant: String,
    family: i64,
    done: Vec<String>,
}

/// Tries, by the login's URL, what it must not be able to do; `owner` is the URL of who owns the tables. Returns what succeeded, and what
/// there was nothing to try with.
///
/// # Errors
/// Where one of them cannot connect, or the owner cannot look.
pub async fn trespasses(owner: &str, login: &str) -> Result<Vec<String>, sqlx::Error> {
    let mut owner = PgConnection::connect(owner).await?;
    let mut login = PgConnection::connect(login).await?;
    let role: String = sqlx::query_scalar("SELECT session_user::text").fetch_one(&mut login).await?;
    let row = sqlx::query("SELECT tenant::text, family FROM tarbox.login WHERE role = $1::name")
        .bind(&role)
        .fetch_one(&mut owner)
        .await?;
    let (tenant, family) = (row.try_get(0)?, row.try_get(1)?);
    let mut trial = Trial { owner, login, role, tenant, family, done: Vec::new() };
    trial.tables().await?;
    trial.functions().await?;
    trial.rights().await?;
    Ok(trial.done)
}

/// A table, as far as it matters.
struct Table {
    name: String,
    columns: Vec<String>,
}

impl Table {
    fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
    }
}

impl Trial {
    async fn tables(&mut self) -> Sql<()> {
        let found = sqlx::query(
            "SELECT c.relname::text, c.relrowsecurity, array_agg(a.attname::text ORDER BY a.attnum)
             FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             WHERE c.relnamespace = 'tarbox'::regnamespace AND c.relkind IN ('r', 'p') GROUP BY c.oid ORDER BY 1",
        );
        for row in found.fetch_all(&mut self.owner).await? {
            let table = Table { name: row.try_get(0)?, columns: row.try_get(2)? };
            if !row.try_get::<bool, _>(1)? {
                self.done.push(format!("`{}` has no row-level security", table.name));
            }
            self.table(&table).await?;
        }
        Ok(())
    }

    /// Rows of a table `t` that the login must not see, and those that it must not change.
    fn foreign(&self, table: &Table) -> (String, String) {
        let Self { role, tenant, family, .. } = self;
        let name = table.name.as_str();
        let version =
            ["born", "layer", "died"].into_iter().find(|column| table.has(column)).unwrap_or("branch * 0");
        let reached = |upto: &str| {
            format!(
                "NOT EXISTS (SELECT FROM tarbox.reach r WHERE r.role = '{role}' AND r.family = t.family
                   AND r.branch = t.branch AND r.upto >= {upto})"
            )
        };
        let same = |condition: String| (condition.clone(), condition);
        match name {
            "tenant" | "volume" => same(format!("t.id <> '{tenant}'")),
            "session" => same(format!(
                "t.login <> '{role}' AND t.session NOT IN (SELECT n.session FROM tarbox.tenant n WHERE n.id = '{tenant}' AND n.session IS NOT NULL)"
            )),
            _ if PUBLIC.contains(&name) => ("false".to_owned(), "true".to_owned()),
            _ if SHARED.contains(&name) => (format!("t.family <> {family}"), "true".to_owned()),
            _ if table.has("role") => (format!("t.role <> '{role}'"), "true".to_owned()),
            _ if table.has("branch") && table.has("family") => {
                (reached(version), reached("9223372036854775807"))
            }
            _ if table.has("tenant") => same(format!("t.tenant <> '{tenant}'")),
            _ if table.has("family") => same(format!("t.family <> {family}")),
            _ => same("true".to_owned()),
        }
    }

    async fn table(&mut self, table: &Table) -> Sql<()> {
        let name = &table.name;
        let (unseen, unchanged) = self.foreign(table);
        let places = |condition: &str| {
            format!(
                "SELECT COALESCE(array_agg(quote_literal(t.ctid::text)), '{{}}') FROM tarbox.{name} t WHERE {condition}"
            )
        };
        let unseen: Vec<String> = self.one(&places(&unseen)).await?;
        let unchanged: Vec<String> = self.one(&places(&unchanged)).await?;
        if unchanged.is_empty() {
            self.done.push(format!("`{name}` holds nothing of others to try with"));
            return Ok(());
        }
        let among = |places: &[String]| format!("ctid IN ({})", places.join(", "));
        if !unseen.is_empty() {
            let which = among(&unseen);
            self.must_not(&format!("SELECT 1 FROM tarbox.{name} WHERE {which}")).await?;
            self.must_not(&format!("SELECT 1 FROM tarbox.{name} WHERE {which} FOR UPDATE")).await?;
        }
        let which = among(&unchanged);
        for column in &table.columns {
            self.must_not(&format!("UPDATE tarbox.{name} SET {column} = {column} WHERE {which} RETURNING 1"))
                .await?;
            self.must_not(&format!("UPDATE tarbox.{name} SET {column} = {column} WHERE {which}")).await?;
        }
        self.must_not(&format!("DELETE FROM tarbox.{name} WHERE {which}")).await?;
        self.must_not(&format!("TRUNCATE tarbox.{name}")).await?;
        self.must_not(&format!("ALTER TABLE tarbox.{name} DISABLE ROW LEVEL SECURITY")).await?;
        // Another one of the kind, of somebody else's where there is one.
        let place = unseen.first().unwrap_or(&unchanged[0]);
        let text: String = self
            .one(&format!(
                "SELECT quote_literal(row_to_json(t)::text) FROM tarbox.{name} t WHERE ctid = {place}"
            ))
            .await?;
        self.must_be_refused(&format!(
            "INSERT INTO tarbox.{name} OVERRIDING SYSTEM VALUE SELECT * FROM json_populate_record(NULL::tarbox.{name}, {text}::json)"
        ))
        .await
    }

    async fn one<T>(&mut self, sql: &str) -> Sql<T>
    where
        T: sqlx::Type<sqlx::Postgres> + for<'r> sqlx::Decode<'r, sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut self.owner).await
    }

    /// Rows that the login's statement returned or changed; `None` where it was refused. Undone in any case.
    async fn attempt(&mut self, sql: &str) -> Sql<Option<(u64, String)>> {
        sqlx::raw_sql("BEGIN").execute(&mut self.login).await?;
        let attempted = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_all(&mut self.login).await;
        let outcome = match attempted {
            Ok(rows) if rows.is_empty() => {
                // What returns nothing may have changed something.
                sqlx::raw_sql("ROLLBACK; BEGIN").execute(&mut self.login).await?;
                let done = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut self.login).await?;
                Some((done.rows_affected(), String::new()))
            }
            Ok(rows) => Some((rows.len() as u64, String::new())),
            Err(sqlx::Error::Database(answer)) if answer.code().as_deref() == Some("42501") => None,
            Err(sqlx::Error::Database(answer)) => Some((0, answer.message().to_owned())),
            Err(error) => return Err(error),
        };
        sqlx::raw_sql("ROLLBACK").execute(&mut self.login).await?;
        Ok(outcome)
    }

    /// Refused, or of no effect; any other error says that the attempt was none.
    async fn must_not(&mut self, sql: &str) -> Sql<()> {
        match self.attempt(sql).await? {
            None | Some((0, _)) => {}
            Some((rows, _)) => self.done.push(format!("{rows} rows: {sql:.300}")),
        }
        Ok(())
    }

    async fn must_be_refused(&mut self, sql: &str) -> Sql<()> {
        if let Some((_, why)) = self.attempt(sql).await? {
            self.done.push(format!("not refused ({why}): {sql:.300}"));
        }
        Ok(())
    }

    async fn functions(&mut self) -> Sql<()> {
        let Self { tenant, family, .. } = self;
        let (tenant, family) = (tenant.clone(), *family);
        let other = format!(
            "(SELECT t.id FROM tarbox.tenant t WHERE t.id <> '{tenant}' ORDER BY t.family = {family} LIMIT 1)"
        );
        let other: String = self.one(&format!("SELECT quote_literal({other}::text)")).await?;
        let elsewhere: i64 =
            self.one(&format!("SELECT family FROM tarbox.tenant WHERE id = {other}::uuid")).await?;
        let relatives: i64 = self
            .one(&format!(
                "SELECT COALESCE((SELECT b.block FROM tarbox.block b WHERE b.family = {family} AND NOT EXISTS (SELECT FROM tarbox.reservation r
                   WHERE r.family = b.family AND r.tenant = '{tenant}' AND b.block BETWEEN r.first AND r.first + r.count - 1)
                 LIMIT 1), -1)"
            ))
            .await?;
        let (there, upto): (i64, i64) = (
            self.one(&format!("SELECT head_branch FROM tarbox.tenant WHERE id = {other}::uuid")).await?,
            i64::MAX,
        );
        let refused = [
            format!("reserve_blocks({elsewhere}, {other}, 1)"),
            format!("reserve_blocks({family}, {other}, 1)"),
            format!("reserve_blocks({elsewhere}, '{tenant}', 1)"),
            format!("upload_blocks({elsewhere}, '{{1}}', '{{0}}', '{{x}}', '{{1}}', '{{1}}')"),
            format!(
                "upload_blocks({family}, '{{{relatives}}}', '{{0}}', '{{x}}', '{{{relatives}}}', '{{1}}')"
            ),
            format!("upload_blocks({family}, '{{{relatives}}}', '{{0}}', '{{x}}', '{{}}', '{{}}')"),
            format!("refresh_reach('{}')", self.role),
            format!("admit('{}', {other}, 'n')", self.role),
            format!("check_login({other})"),
        ];
        let empty = [
            format!("sees({elsewhere}, {there}, 0)"),
            format!("owns({elsewhere}, {there})"),
            format!("sees({family}, {there}, {upto})"),
            format!("is_reserved({elsewhere}, 1)"),
            format!("is_reserved({family}, {relatives})"),
            "is_owner()".to_owned(),
        ];
        for call in &refused {
            self.must_be_refused(&format!("SELECT tarbox.{call}")).await?;
        }
        for call in &empty {
            self.must_not(&format!("SELECT 1 WHERE tarbox.{call}")).await?;
        }
        // Those without arguments tell a login about itself; triggers cannot be called.
        let untried: Vec<String> = self
            .one(
                "SELECT COALESCE(array_agg(p.proname::text), '{}') FROM pg_proc p WHERE p.pronamespace = 'tarbox'::regnamespace
                   AND p.prorettype <> 'trigger'::regtype AND p.proname NOT LIKE 'own\\_%'",
            )
            .await?;
        for name in untried {
            if !refused.iter().chain(&empty).any(|call| call.starts_with(&format!("{name}("))) {
                self.done.push(format!("the function `{name}` is not tried"));
            }
        }
        Ok(())
    }

    async fn rights(&mut self) -> Sql<()> {
        let owner: String = self
            .one("SELECT relowner::regrole::text FROM pg_class WHERE oid = 'tarbox.tenant'::regclass")
            .await?;
        let database: String = self.one("SELECT quote_ident(current_database())").await?;
        let Self { role, tenant, .. } = self;
        let (role, tenant) = (role.clone(), tenant.clone());
        for sql in [
            format!("SET ROLE {owner}"),
            format!("SET SESSION AUTHORIZATION {owner}"),
            format!("GRANT {owner} TO {role}"),
            format!("ALTER ROLE {role} CREATEROLE"),
            format!("ALTER ROLE {role} BYPASSRLS"),
            "CREATE ROLE tarbox_other LOGIN".to_owned(),
            "SELECT rolpassword FROM pg_catalog.pg_authid".to_owned(),
            "CREATE TABLE tarbox.mine (x int)".to_owned(),
            "CREATE TABLE public.mine (x int)".to_owned(),
            "CREATE FUNCTION tarbox.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'".to_owned(),
            "CREATE SCHEMA mine".to_owned(),
            format!("ALTER DATABASE {database} CONNECTION LIMIT 1"),
            "SELECT setval('tarbox.branch_id', 1)".to_owned(),
            "SELECT nextval('tarbox.family_id')".to_owned(),
            "CREATE POLICY mine ON tarbox.inode USING (true)".to_owned(),
            format!("UPDATE tarbox.tenant SET quota_bytes = 0 WHERE id = '{tenant}'"),
            format!("UPDATE tarbox.tenant SET name = 'x' WHERE id = '{tenant}'"),
            format!("UPDATE tarbox.tenant SET head_branch = -1 WHERE id = '{tenant}'"),
            format!("UPDATE tarbox.tenant SET family = family + 1 WHERE id = '{tenant}'"),
            format!("UPDATE tarbox.reach SET upto = {} WHERE role = '{role}'", i64::MAX),
            format!("INSERT INTO tarbox.reach VALUES ('{role}', 1, 1, 1)"),
            format!("UPDATE tarbox.login SET family = family + 1 WHERE role = '{role}'"),
            format!("DELETE FROM tarbox.login WHERE role = '{role}'"),
            "UPDATE tarbox.leader SET epoch = epoch + 1".to_owned(),
        ] {
            self.must_be_refused(&sql).await?;
        }
        Ok(())
    }
}
