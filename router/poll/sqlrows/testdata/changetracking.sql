BEGIN Snapshot

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT CONVERT(varchar(20), CHANGE_TRACKING_CURRENT_VERSION()), CONVERT(varchar(20), CHANGE_TRACKING_MIN_VALID_VERSION(OBJECT_ID(@p1)))
-- 1: "[dbo].[orders]"

SELECT c.name, LOWER(COALESCE(TYPE_NAME(NULLIF(c.system_type_id, 240)), ty.name)),
  CONVERT(int, c.max_length), CONVERT(int, c.precision), CONVERT(int, c.scale), c.is_nullable, COALESCE(c.collation_name, ''),
  CONVERT(bit, CASE WHEN EXISTS (SELECT 1 FROM sys.indexes AS i JOIN sys.index_columns AS ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id
    WHERE i.object_id = c.object_id AND i.is_primary_key = 1 AND ic.column_id = c.column_id) THEN 1 ELSE 0 END)
FROM sys.columns AS c JOIN sys.types AS ty ON ty.user_type_id = c.user_type_id
WHERE c.object_id = OBJECT_ID(@p1)
ORDER BY c.column_id
-- 1: "[dbo].[orders]"

SELECT TOP (2) CONVERT(nvarchar(max), t.[region]),
  CONVERT(varchar(50), t.[number]),
  NULL,
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv]
FROM [dbo].[orders] AS t
WHERE (
amount > 0 -- of worth
)
ORDER BY t.[region], t.[number]

ROLLBACK

-- cursor: {"of":"0d72d68ad5bff01993dc398b","listing":true,"after":["EU, west","7"],"lo":2005}

BEGIN Snapshot

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT CONVERT(varchar(20), CHANGE_TRACKING_CURRENT_VERSION()), CONVERT(varchar(20), CHANGE_TRACKING_MIN_VALID_VERSION(OBJECT_ID(@p1)))
-- 1: "[dbo].[orders]"

SELECT c.name, LOWER(COALESCE(TYPE_NAME(NULLIF(c.system_type_id, 240)), ty.name)),
  CONVERT(int, c.max_length), CONVERT(int, c.precision), CONVERT(int, c.scale), c.is_nullable, COALESCE(c.collation_name, ''),
  CONVERT(bit, CASE WHEN EXISTS (SELECT 1 FROM sys.indexes AS i JOIN sys.index_columns AS ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id
    WHERE i.object_id = c.object_id AND i.is_primary_key = 1 AND ic.column_id = c.column_id) THEN 1 ELSE 0 END)
FROM sys.columns AS c JOIN sys.types AS ty ON ty.user_type_id = c.user_type_id
WHERE c.object_id = OBJECT_ID(@p1)
ORDER BY c.column_id
-- 1: "[dbo].[orders]"

SELECT TOP (2) CONVERT(nvarchar(max), t.[region]),
  CONVERT(varchar(50), t.[number]),
  NULL,
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv]
FROM [dbo].[orders] AS t
WHERE (
amount > 0 -- of worth
)
  AND ((t.[region] >= CAST(@p1 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS AND (t.[region] > CAST(@p1 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS OR (t.[number] > CAST(@p2 AS int)))))
ORDER BY t.[region], t.[number]
-- 1: "EU, west"
-- 2: "7"

ROLLBACK

-- cursor: {"of":"0d72d68ad5bff01993dc398b","lo":2005}

BEGIN Snapshot

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT CONVERT(varchar(20), CHANGE_TRACKING_CURRENT_VERSION()), CONVERT(varchar(20), CHANGE_TRACKING_MIN_VALID_VERSION(OBJECT_ID(@p1)))
-- 1: "[dbo].[orders]"

SELECT c.name, LOWER(COALESCE(TYPE_NAME(NULLIF(c.system_type_id, 240)), ty.name)),
  CONVERT(int, c.max_length), CONVERT(int, c.precision), CONVERT(int, c.scale), c.is_nullable, COALESCE(c.collation_name, ''),
  CONVERT(bit, CASE WHEN EXISTS (SELECT 1 FROM sys.indexes AS i JOIN sys.index_columns AS ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id
    WHERE i.object_id = c.object_id AND i.is_primary_key = 1 AND ic.column_id = c.column_id) THEN 1 ELSE 0 END)
FROM sys.columns AS c JOIN sys.types AS ty ON ty.user_type_id = c.user_type_id
WHERE c.object_id = OBJECT_ID(@p1)
ORDER BY c.column_id
-- 1: "[dbo].[orders]"

SELECT TOP (2) CONVERT(nvarchar(max), ct.[region]),
  CONVERT(varchar(50), ct.[number]),
  CONVERT(varchar(50), ct.SYS_CHANGE_VERSION),
  ct.SYS_CHANGE_OPERATION,
  CASE WHEN t.[region] IS NULL THEN 0 ELSE 1 END,
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv]
FROM CHANGETABLE(CHANGES [dbo].[orders], @p1) AS ct
  LEFT JOIN (SELECT * FROM [dbo].[orders] WHERE (
amount > 0 -- of worth
)) AS t ON t.[region] = ct.[region] AND t.[number] = ct.[number]
WHERE ct.SYS_CHANGE_VERSION <= CAST(@p2 AS bigint)
ORDER BY ct.SYS_CHANGE_VERSION, ct.[region], ct.[number]
-- 1: 2005
-- 2: "2025"

ROLLBACK

-- cursor: {"of":"0d72d68ad5bff01993dc398b","after":["2003","EU, west","7"],"lo":2005,"hi":2025}

BEGIN Snapshot

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT CONVERT(varchar(20), CHANGE_TRACKING_CURRENT_VERSION()), CONVERT(varchar(20), CHANGE_TRACKING_MIN_VALID_VERSION(OBJECT_ID(@p1)))
-- 1: "[dbo].[orders]"

SELECT c.name, LOWER(COALESCE(TYPE_NAME(NULLIF(c.system_type_id, 240)), ty.name)),
  CONVERT(int, c.max_length), CONVERT(int, c.precision), CONVERT(int, c.scale), c.is_nullable, COALESCE(c.collation_name, ''),
  CONVERT(bit, CASE WHEN EXISTS (SELECT 1 FROM sys.indexes AS i JOIN sys.index_columns AS ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id
    WHERE i.object_id = c.object_id AND i.is_primary_key = 1 AND ic.column_id = c.column_id) THEN 1 ELSE 0 END)
FROM sys.columns AS c JOIN sys.types AS ty ON ty.user_type_id = c.user_type_id
WHERE c.object_id = OBJECT_ID(@p1)
ORDER BY c.column_id
-- 1: "[dbo].[orders]"

SELECT TOP (2) CONVERT(nvarchar(max), ct.[region]),
  CONVERT(varchar(50), ct.[number]),
  CONVERT(varchar(50), ct.SYS_CHANGE_VERSION),
  ct.SYS_CHANGE_OPERATION,
  CASE WHEN t.[region] IS NULL THEN 0 ELSE 1 END,
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv]
FROM CHANGETABLE(CHANGES [dbo].[orders], @p1) AS ct
  LEFT JOIN (SELECT * FROM [dbo].[orders] WHERE (
amount > 0 -- of worth
)) AS t ON t.[region] = ct.[region] AND t.[number] = ct.[number]
WHERE ct.SYS_CHANGE_VERSION <= CAST(@p2 AS bigint)
  AND (ct.SYS_CHANGE_VERSION >= CAST(@p3 AS bigint) AND (ct.SYS_CHANGE_VERSION > CAST(@p3 AS bigint) OR (ct.[region] >= CAST(@p4 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS AND (ct.[region] > CAST(@p4 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS OR (ct.[number] > CAST(@p5 AS int))))))
ORDER BY ct.SYS_CHANGE_VERSION, ct.[region], ct.[number]
-- 1: 2005
-- 2: "2025"
-- 3: "2003"
-- 4: "EU, west"
-- 5: "7"

ROLLBACK

-- cursor: {"of":"0d72d68ad5bff01993dc398b","lo":2025}

