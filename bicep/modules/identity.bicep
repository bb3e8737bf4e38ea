metadata name = 'Identity'
metadata description = 'A user-assigned managed identity.'

@description('Required. Name of the identity.')
@minLength(3)
@maxLength(128)
param name string

@description('Required. Region.')
param location string

@description('Required. Tags of the resource.')
param tags { *: string }

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: name
  location: location
  tags: tags
}

@description('Resource id of the identity.')
output resourceId string = identity.id

@description('Name of the identity.')
output name string = identity.name

@description('Object id of its service principal, for role assignments.')
output principalId string = identity.properties.principalId

@description('Client id, by which programs choose the identity.')
output clientId string = identity.properties.clientId
