BEGIN Read Committed

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT c.name, LOWER(COALESCE(TYPE_NAME(NULLIF(c.system_type_id, 240)), ty.name)),
  CONVERT(int, c.max_length), CONVERT(int, c.precision), CONVERT(int, c.scale), c.is_nullable, COALESCE(c.collation_name, ''),
  CONVERT(bit, CASE WHEN EXISTS (SELECT 1 FROM sys.indexes AS i JOIN sys.index_columns AS ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id
    WHERE i.object_id = c.object_id AND i.is_primary_key = 1 AND ic.column_id = c.column_id) THEN 1 ELSE 0 END)
FROM sys.columns AS c JOIN sys.types AS ty ON ty.user_type_id = c.user_type_id
WHERE c.object_id = OBJECT_ID(@p1)
ORDER BY c.column_id
-- 1: "[dbo].[orders]"

SELECT COUNT_BIG(*),
  CONVERT(varchar(40), MAX(t.[changed]), 126),
  CONVERT(varchar(50), COALESCE(SUM(CAST(DATEDIFF_BIG(microsecond, '20000101', t.[changed]) AS decimal(38, 0))), 0)),
  COUNT_BIG(*),
  COUNT_BIG(*),
  CONVERT(varchar(40), SYSDATETIMEOFFSET(), 126)
FROM [dbo].[orders] AS t

SELECT TOP (2) CONVERT(nvarchar(max), t.[region]),
  CONVERT(varchar(50), t.[number]),
  CONVERT(varchar(40), t.[changed], 126),
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv],
  CONVERT(varchar(40), t.[changed], 126)
FROM [dbo].[orders] AS t
ORDER BY t.[region], t.[number]

ROLLBACK

-- cursor: {"of":"732e27985e2c07cb3605e4cb","listing":true,"after":["EU, west","7"],"top":"2026-11-23T10:00:00.1234567","rows":2}

BEGIN Read Committed

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT c.name, LOWER(COALESCE(TYPE_NAME(NULLIF(c.system_type_id, 240)), ty.name)),
  CONVERT(int, c.max_length), CONVERT(int, c.precision), CONVERT(int, c.scale), c.is_nullable, COALESCE(c.collation_name, ''),
  CONVERT(bit, CASE WHEN EXISTS (SELECT 1 FROM sys.indexes AS i JOIN sys.index_columns AS ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id
    WHERE i.object_id = c.object_id AND i.is_primary_key = 1 AND ic.column_id = c.column_id) THEN 1 ELSE 0 END)
FROM sys.columns AS c JOIN sys.types AS ty ON ty.user_type_id = c.user_type_id
WHERE c.object_id = OBJECT_ID(@p1)
ORDER BY c.column_id
-- 1: "[dbo].[orders]"

SELECT COUNT_BIG(*),
  CONVERT(varchar(40), MAX(t.[changed]), 126),
  CONVERT(varchar(50), COALESCE(SUM(CAST(DATEDIFF_BIG(microsecond, '20000101', t.[changed]) AS decimal(38, 0))), 0)),
  COUNT_BIG(*),
  COUNT_BIG(CASE WHEN t.[changed] > CAST(@p1 AS datetime2(7)) THEN 1 END),
  CONVERT(varchar(40), SYSDATETIMEOFFSET(), 126)
FROM [dbo].[orders] AS t
-- 1: "2026-11-23T10:00:00.1234567"

SELECT TOP (2) CONVERT(nvarchar(max), t.[region]),
  CONVERT(varchar(50), t.[number]),
  CONVERT(varchar(40), t.[changed], 126),
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv],
  CONVERT(varchar(40), t.[changed], 126)
FROM [dbo].[orders] AS t
WHERE ((t.[region] >= CAST(@p1 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS AND (t.[region] > CAST(@p1 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS OR (t.[number] > CAST(@p2 AS int)))))
ORDER BY t.[region], t.[number]
-- 1: "EU, west"
-- 2: "7"

ROLLBACK

-- cursor: {"of":"732e27985e2c07cb3605e4cb","top":"2026-11-23T10:00:00.1234567","rows":2}

BEGIN Read Committed

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT c.name, LOWER(COALESCE(TYPE_NAME(NULLIF(c.system_type_id, 240)), ty.name)),
  CONVERT(int, c.max_length), CONVERT(int, c.precision), CONVERT(int, c.scale), c.is_nullable, COALESCE(c.collation_name, ''),
  CONVERT(bit, CASE WHEN EXISTS (SELECT 1 FROM sys.indexes AS i JOIN sys.index_columns AS ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id
    WHERE i.object_id = c.object_id AND i.is_primary_key = 1 AND ic.column_id = c.column_id) THEN 1 ELSE 0 END)
FROM sys.columns AS c JOIN sys.types AS ty ON ty.user_type_id = c.user_type_id
WHERE c.object_id = OBJECT_ID(@p1)
ORDER BY c.column_id
-- 1: "[dbo].[orders]"

SELECT COUNT_BIG(CASE WHEN t.[changed] >= CAST(@p1 AS datetime2(7)) THEN 1 END),
  CONVERT(varchar(40), MAX(t.[changed]), 126),
  CONVERT(varchar(50), COALESCE(SUM(CASE WHEN t.[changed] >= CAST(@p1 AS datetime2(7)) THEN CAST(DATEDIFF_BIG(microsecond, '20000101', t.[changed]) AS decimal(38, 0)) END), 0)),
  COUNT_BIG(*),
  COUNT_BIG(CASE WHEN t.[changed] > CAST(@p2 AS datetime2(7)) THEN 1 END),
  CONVERT(varchar(40), SYSDATETIMEOFFSET(), 126)
FROM [dbo].[orders] AS t
-- 1: "2026-11-23T09:00:00"
-- 2: "2026-11-23T10:00:00.1234567"

SELECT TOP (2) CONVERT(nvarchar(max), t.[region]),
  CONVERT(varchar(50), t.[number]),
  CONVERT(varchar(40), t.[changed], 126),
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv],
  CONVERT(varchar(40), t.[changed], 126)
FROM [dbo].[orders] AS t
WHERE t.[changed] >= CAST(@p1 AS datetime2(7))
  AND t.[changed] <= CAST(@p2 AS datetime2(7))
ORDER BY t.[changed], t.[region], t.[number]
-- 1: "2026-11-23T09:00:00"
-- 2: "2026-11-23T10:00:00.1234567"

ROLLBACK

-- cursor: {"of":"732e27985e2c07cb3605e4cb","after":["2026-11-23T10:00:00.1234567","EU, west","7"],"top":"2026-11-23T10:00:00.1234567","end":"2026-11-23T10:00:00.1234567","cap":"2026-11-23T11:00:00","next":"2/2026-11-23T10:00:00.1234567/2025","rows":2}

BEGIN Read Committed

SET NOCOUNT ON; SET TEXTSIZE 67108866; SET LOCK_TIMEOUT 30000; SET DATEFORMAT ymd

SELECT c.name, LOWER(COALESCE(TYPE_NAME(NULLIF(c.system_type_id, 240)), ty.name)),
  CONVERT(int, c.max_length), CONVERT(int, c.precision), CONVERT(int, c.scale), c.is_nullable, COALESCE(c.collation_name, ''),
  CONVERT(bit, CASE WHEN EXISTS (SELECT 1 FROM sys.indexes AS i JOIN sys.index_columns AS ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id
    WHERE i.object_id = c.object_id AND i.is_primary_key = 1 AND ic.column_id = c.column_id) THEN 1 ELSE 0 END)
FROM sys.columns AS c JOIN sys.types AS ty ON ty.user_type_id = c.user_type_id
WHERE c.object_id = OBJECT_ID(@p1)
ORDER BY c.column_id
-- 1: "[dbo].[orders]"

SELECT COUNT_BIG(CASE WHEN t.[changed] >= CAST(@p1 AS datetime2(7)) THEN 1 END),
  CONVERT(varchar(40), MAX(t.[changed]), 126),
  CONVERT(varchar(50), COALESCE(SUM(CASE WHEN t.[changed] >= CAST(@p1 AS datetime2(7)) THEN CAST(DATEDIFF_BIG(microsecond, '20000101', t.[changed]) AS decimal(38, 0)) END), 0)),
  COUNT_BIG(*),
  COUNT_BIG(CASE WHEN t.[changed] > CAST(@p2 AS datetime2(7)) THEN 1 END),
  CONVERT(varchar(40), SYSDATETIMEOFFSET(), 126)
FROM [dbo].[orders] AS t
-- 1: "2026-11-23T09:00:00"
-- 2: "2026-11-23T10:00:00.1234567"

SELECT TOP (2) CONVERT(nvarchar(max), t.[region]),
  CONVERT(varchar(50), t.[number]),
  CONVERT(varchar(40), t.[changed], 126),
  t.[region],
  t.[number],
  CONVERT(varchar(50), t.[amount]),
  t.[odd]]name],
  CONVERT(varchar(40), t.[changed], 126),
  t.[rv],
  CONVERT(varchar(40), t.[changed], 126)
FROM [dbo].[orders] AS t
WHERE t.[changed] >= CAST(@p1 AS datetime2(7))
  AND t.[changed] <= CAST(@p2 AS datetime2(7))
  AND ((t.[changed] >= CAST(@p3 AS datetime2(7)) AND (t.[changed] > CAST(@p3 AS datetime2(7)) OR (t.[region] >= CAST(@p4 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS AND (t.[region] > CAST(@p4 COLLATE SQL_Latin1_General_CP1_CI_AS AS varchar(10)) COLLATE SQL_Latin1_General_CP1_CI_AS OR (t.[number] > CAST(@p5 AS int)))))))
ORDER BY t.[changed], t.[region], t.[number]
-- 1: "2026-11-23T09:00:00"
-- 2: "2026-11-23T10:00:00.1234567"
-- 3: "2026-11-23T10:00:00.1234567"
-- 4: "EU, west"
-- 5: "7"

ROLLBACK

-- cursor: {"of":"732e27985e2c07cb3605e4cb","top":"2026-11-23T10:00:00.1234567","print":"2/2026-11-23T10:00:00.1234567/2025","rows":2}

