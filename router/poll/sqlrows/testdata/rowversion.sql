BEGIN Read Committed

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT CONVERT(varchar(20), CONVERT(bigint, MIN_ACTIVE_ROWVERSION())), CONVERT(varchar(20), CONVERT(bigint, @@DBTS) + 1)

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
  CONVERT(varchar(20), CONVERT(bigint, t.[rv])),
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv]
FROM [dbo].[orders] AS t
ORDER BY t.[region], t.[number]

ROLLBACK

-- cursor: {"of":"31961fadab8fabe477076261","listing":true,"after":["EU, west","7"],"lo":2005,"marks":[{"to":2005,"at":0}]}

BEGIN Read Committed

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT CONVERT(varchar(20), CONVERT(bigint, MIN_ACTIVE_ROWVERSION())), CONVERT(varchar(20), CONVERT(bigint, @@DBTS) + 1)

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
  CONVERT(varchar(20), CONVERT(bigint, t.[rv])),
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv]
FROM [dbo].[orders] AS t
WHERE ((t.[region] >= CAST(@p1 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS AND (t.[region] > CAST(@p1 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS OR (t.[number] > CAST(@p2 AS int)))))
ORDER BY t.[region], t.[number]
-- 1: "EU, west"
-- 2: "7"

ROLLBACK

-- cursor: {"of":"31961fadab8fabe477076261","lo":2005,"marks":[{"to":2005,"at":0}]}

BEGIN Read Committed

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT CONVERT(varchar(20), CONVERT(bigint, MIN_ACTIVE_ROWVERSION())), CONVERT(varchar(20), CONVERT(bigint, @@DBTS) + 1)

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
  CONVERT(varchar(20), CONVERT(bigint, t.[rv])),
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv]
FROM [dbo].[orders] AS t
WHERE t.[rv] >= CONVERT(binary(8), CONVERT(bigint, @p1))
  AND t.[rv] < CONVERT(binary(8), CONVERT(bigint, @p2))
ORDER BY t.[rv], t.[region], t.[number]
-- 1: "2005"
-- 2: "2025"

ROLLBACK

-- cursor: {"of":"31961fadab8fabe477076261","after":["2003","EU, west","7"],"lo":2005,"hi":2025,"marks":[{"to":2005,"at":0},{"to":2025,"at":0}]}

BEGIN Read Committed

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT CONVERT(varchar(20), CONVERT(bigint, MIN_ACTIVE_ROWVERSION())), CONVERT(varchar(20), CONVERT(bigint, @@DBTS) + 1)

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
  CONVERT(varchar(20), CONVERT(bigint, t.[rv])),
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv]
FROM [dbo].[orders] AS t
WHERE t.[rv] >= CONVERT(binary(8), CONVERT(bigint, @p1))
  AND t.[rv] < CONVERT(binary(8), CONVERT(bigint, @p2))
  AND ((t.[rv] >= CONVERT(binary(8), CONVERT(bigint, @p3)) AND (t.[rv] > CONVERT(binary(8), CONVERT(bigint, @p3)) OR (t.[region] >= CAST(@p4 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS AND (t.[region] > CAST(@p4 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS OR (t.[number] > CAST(@p5 AS int)))))))
ORDER BY t.[rv], t.[region], t.[number]
-- 1: "2005"
-- 2: "2025"
-- 3: "2003"
-- 4: "EU, west"
-- 5: "7"

ROLLBACK

-- cursor: {"of":"31961fadab8fabe477076261","lo":2025,"marks":[{"to":2025,"at":0},{"to":2035,"at":0}]}

