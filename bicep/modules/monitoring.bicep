metadata name = 'Monitoring'
metadata description = 'The workspace that all logs and metrics go to, and a workbook that shows them.'

@description('Required. Name of the Log Analytics workspace.')
@minLength(4)
@maxLength(63)
param name string

@description('Required. Region.')
param location string

@description('Required. Tags of the resources.')
param tags { *: string }

@description('Required. How many days logs are kept.')
@minValue(30)
@maxValue(730)
param retentionInDays int

@description('Required. Title of the workbook.')
param workbookTitle string

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    sku: { name: 'PerGB2018' }
    retentionInDays: retentionInDays
    features: {
      // The Container Apps environment writes with the workspace's key.
      disableLocalAuth: false
    }
  }
}

resource workbook 'Microsoft.Insights/workbooks@2023-06-01' = {
  name: guid(resourceGroup().id, 'gridfan-workbook')
  location: location
  tags: tags
  kind: 'shared'
  properties: {
    displayName: workbookTitle
    category: 'workbook'
    sourceId: workspace.id
    serializedData: replace(loadTextContent('workbook.json'), '__WORKSPACE__', workspace.id)
  }
}

@description('Resource id of the workspace.')
output resourceId string = workspace.id

@description('Name of the workspace.')
output name string = workspace.name

@description('Resource id of the workbook.')
output workbookId string = workbook.id
