@path: '/data'
service Data {
  entity Orders {
    key dataAreaId   : String(4);
    key OrderNumber  : String(20);
    RecId            : Integer;
    Text             : String;
    @cds.on.insert: $now  @cds.on.update: $now
    ModifiedDateTime : DateTime;
  }
}
